// Package transfer moves files between this machine and archives: it packs
// folders to be sent into a sandbox, and unpacks what comes out of one. What comes out
// is hostile: it gets nothing outside the destination, makes no link and no special
// file, and by default nothing that other programs execute or obey.
package transfer
