WORD = "dog"
