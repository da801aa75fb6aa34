"""Results of one commit on unlike machines are equal to the gate, and worse ones are not."""
