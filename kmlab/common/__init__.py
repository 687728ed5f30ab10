"""What every room stands on: errors, events, the places of files, folder trees."""
