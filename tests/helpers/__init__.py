"""What tests share: models of several frameworks, random programs, published starts, an interpreter that measures."""
