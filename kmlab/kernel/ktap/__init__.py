"""Read the results of tests from what a kernel or a program printed: KTAP and TAP."""
