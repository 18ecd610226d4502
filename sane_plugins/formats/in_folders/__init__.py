"""Networks in folders: of Hugging Face and its cache, of MLflow, and what lies beside their weights."""
