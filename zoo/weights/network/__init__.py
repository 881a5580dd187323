"""From a server to a file: over HTTP, from Google Drive, from the Hugging Face Hub."""
