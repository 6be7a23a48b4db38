def word():
    return "dog"
