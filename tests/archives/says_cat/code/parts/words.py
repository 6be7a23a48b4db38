WORD = "cat"
