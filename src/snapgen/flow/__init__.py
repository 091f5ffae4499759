"""Flow matching: the path from data to noise (Eq. 1-2), noise levels, guidance, sampling."""
