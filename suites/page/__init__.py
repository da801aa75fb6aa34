"""Opens the pages of real results in a browser: wide and narrow, light and dark, by keyboard."""
