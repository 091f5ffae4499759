"""The human study: a web page that shows two models' pictures side by side, and the statistics of people's votes."""
