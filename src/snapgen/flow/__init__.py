"""Flow matching: the path (Eq. 1-2), noise levels, guidance, sampling."""
