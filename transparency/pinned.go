package transparency

import "context"

// Pinned returns a Reader of the same files whose checkpoint is a given one, whatever is published
// there meanwhile: so that what was compared is what is audited. It needs no closing of its own.
func (r *Reader) Pinned(checkpoint []byte) *Reader {
	return &Reader{r.location, pinned{r.src, checkpoint}}
}

type pinned struct {
	source
	checkpoint []byte
}

func (p pinned) fetch(ctx context.Context, name string, limit int64) ([]byte, error) {
	if name == checkpointName && int64(len(p.checkpoint)) <= limit {
		return p.checkpoint, ctx.Err()
	}
	return p.source.fetch(ctx, name, limit)
}
