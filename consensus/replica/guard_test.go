package replica

import (
	"context"
	"time"
)

func context5() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), 5*time.Second)
}
