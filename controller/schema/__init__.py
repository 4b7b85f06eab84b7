"""What users may write: resources and configuration, checked strictly and located by line."""
