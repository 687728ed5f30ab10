"""Define what every room uses: errors, events, the paths of files, folder trees."""
