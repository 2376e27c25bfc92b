// Package files carries out operations on files inside a sandbox: each in a
// process of its own that runs as the sandbox's user, so that the sandbox's
// kernel resolves every path and decides what it may touch. The host never
// resolves one.
//
// The process trusts neither its data nor the folders that it works in: other
// processes of the sandbox change them while it runs. It opens no fifo and no
// device, replaces files by a rename within a folder that it holds open, and unpacks
// archives with [os.Root], which follows no link out of the folder.
package files
