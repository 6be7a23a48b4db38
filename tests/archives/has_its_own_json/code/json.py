MARK = "my json"
