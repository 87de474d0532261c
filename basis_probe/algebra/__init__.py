"""Groups of changes of basis, uniform rotations, and the intertwiner group of a nonlinearity."""
