"""``make soak``: a real server under mixed traffic and faults for as long as asked, watched for creep."""
