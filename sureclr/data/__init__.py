"""Images, their labels, their random views, and tables of their embeddings."""
