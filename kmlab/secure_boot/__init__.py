"""Sign files in place, and try one module with every kind of signature."""
