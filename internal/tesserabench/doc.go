// Package tesserabench appends to Tessera's POSIX driver what transparency.Tree takes, for a
// comparison that is information and no target: meshnode does not use Tessera, whose dependencies
// stay in this module of its own.
package tesserabench
