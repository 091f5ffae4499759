"""The human study: two models side by side on one page, and the votes on them."""
