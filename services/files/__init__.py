"""Pictures and files: fetched, told apart, kept, served, uploaded and taken over from upstreams."""
