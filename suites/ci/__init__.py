"""The commands of a CI job: `action.yml` and `.github/workflows/models.yml` call them."""
