"""Images from columns: rows to bytes, bytes to uint8 RGB tensors; no models and no Spark here."""
