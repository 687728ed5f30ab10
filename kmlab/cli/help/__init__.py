"""Help a person to type a command: the text of --help, what was meant by a wrong word, and the shell's completion."""
