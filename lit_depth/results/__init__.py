"""Results on disk: records, JSON, figures, tables and one HTML page. Knows nothing of models, data or metrics."""
