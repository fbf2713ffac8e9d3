"""The parts that ship with upge: one family a folder, one part a file, offered by entry points like anybody's."""
