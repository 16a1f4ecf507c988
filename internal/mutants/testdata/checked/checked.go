// Package checked has three checks, and tests for one.
package checked

import "errors"

func check(n int) error {
	switch {
	case n < 0:
		return errors.New("negative")
	case n > 20:
		return errors.New("large")
	case n == 13:
		return errors.New("unlucky")
	}
	return nil
}
