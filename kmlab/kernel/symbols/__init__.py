"""ELF, DWARF and symbol tables: from an address or function+offset to a source line."""
