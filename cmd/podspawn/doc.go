// Podspawn is the command line, and the two services behind it: the daemon,
// which is root, and serve, the API, which is nobody in particular. This
// package is wiring: flags, configuration, environment and what is written to
// a terminal. What a command means is decided in the packages below.
//
// Each command has a file of its own with its constructor, its options and the
// function that runs it. Nothing here is global: commands share one [app], made
// by run from what main passes in.
package main
