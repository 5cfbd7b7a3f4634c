"""What property tests share: random programs with what is known of them, and an interpreter that measures them."""
