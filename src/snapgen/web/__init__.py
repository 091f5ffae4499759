"""The web app, which draws on the visitor's own device: served from here, or written as a site for any web host."""
