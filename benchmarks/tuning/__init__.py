"""How values of the benchmark were found: searches and simulations that anybody can run again."""
