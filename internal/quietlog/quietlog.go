// Package quietlog keeps vendor libraries off standard output. go-tdx-guest's verify
// package calls logger.Init(…, os.Stdout) in its init, and the first Init of
// github.com/google/logger wins; packages of equal rank are initialised in import-path
// order, and github.com/attestmesh sorts before github.com/google. Whoever links
// go-tdx-guest imports this package for its effect.
package quietlog

import (
	"io"

	"github.com/google/logger"
)

func init() { logger.Init("", false, false, io.Discard) }
