"""Sources of prompts: files that others have made, one module per form."""
