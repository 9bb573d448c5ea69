"""The dialects that clients speak, one module for what comes in or goes out of each."""
