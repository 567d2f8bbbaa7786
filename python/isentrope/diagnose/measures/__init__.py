"""One measure a file (isentrope.diagnose.measure.Measure), found by the file's name."""
