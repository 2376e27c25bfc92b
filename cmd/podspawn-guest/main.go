// Podspawn-guest is the first process of every sandbox; see package pid1.
package main

import (
	"os"

	"github.com/podspawn/podspawn/sandbox/guest/pid1"
)

func main() {
	os.Exit(pid1.Main(os.Args, os.Environ(), pid1.Stdio{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}))
}
