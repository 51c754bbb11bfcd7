"""The job that publishes a merged model."""
