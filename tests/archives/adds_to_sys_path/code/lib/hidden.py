PLACE = "lib"
