package collect

import (
	"fmt"
	"os"

	"github.com/attestmesh/meshnode/attest"
)

// Parts returns everything that is recognised at path, a file or a folder, one item after
// the other: evidence, certificates and collateral. In a folder, what is nothing we know is
// passed over.
func Parts(path string) ([]attest.Item, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		inputs, parts, err := folder(path)
		if err != nil {
			return nil, err
		}
		var items []attest.Item
		for _, in := range inputs {
			items = append(items, in.Evidence.Items...)
		}
		for _, p := range parts {
			items = append(items, p.item)
		}
		return items, nil
	}
	raw, err := read(path, maxFile)
	if err != nil {
		return nil, err
	}
	_, items, err := recognise(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return items, nil
}

// Beside returns the certificates and collateral in the folder of a file of Intel's
// collateral, without the file itself: what belongs to it, among other things.
func Beside(path string) ([]attest.Item, error) {
	parts, err := siblings(path, attest.KindTDX)
	if err != nil {
		return nil, err
	}
	var items []attest.Item
	for _, p := range parts {
		if p.item.Type != attest.TypeHCLReport {
			items = append(items, p.item)
		}
	}
	return items, nil
}
