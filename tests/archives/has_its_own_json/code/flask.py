MARK = " and my flask"
