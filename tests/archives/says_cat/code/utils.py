def word():
    return "cat"
