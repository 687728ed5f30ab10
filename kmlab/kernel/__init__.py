"""What a kernel wants and says: kbuild, signatures, logs, crashes and symbols, all pure."""
