PLACE = " and lib"
