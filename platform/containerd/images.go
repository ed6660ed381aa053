// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"

	"sdvbox/platform/protobuf"
)

// Images is the names of images.
type Images struct{ conn *conn }

// Image is what a name stands for.
type Image struct {
	Name    string              `pb:"1"`
	Labels  map[string]string   `pb:"2"`
	Target  *Descriptor         `pb:"3"`
	Created *protobuf.Timestamp `pb:"7"`
	Updated *protobuf.Timestamp `pb:"8"`
}

// Descriptor is a reference to a blob.
type Descriptor struct {
	MediaType   string            `pb:"1"`
	Digest      string            `pb:"2"`
	Size        int64             `pb:"3"`
	Annotations map[string]string `pb:"5"`
}

type imageMessage struct {
	Image *Image     `pb:"1"`
	Mask  *fieldMask `pb:"2"`
}

func (i Images) image(ctx context.Context, method string, req any) (*Image, error) {
	var resp imageMessage
	if err := i.conn.call(ctx, "images.v1.Images/"+method, req, &resp); err != nil {
		return nil, err
	}
	return orZero(resp.Image), nil
}

// Get finds an image by its name.
func (i Images) Get(ctx context.Context, name string) (*Image, error) {
	return i.image(ctx, "Get", &byName{name})
}

// List lists the images that one of the filters matches, all if there is none.
func (i Images) List(ctx context.Context, filters ...string) ([]*Image, error) {
	var resp struct {
		Images []*Image `pb:"1"`
	}
	err := i.conn.call(ctx, "images.v1.Images/List", &filtered{filters}, &resp)
	return resp.Images, err
}

// Create creates an image.
func (i Images) Create(ctx context.Context, image *Image) (*Image, error) {
	return i.image(ctx, "Create", &imageMessage{Image: image})
}

// Update changes the fields of an image, like target and labels.KEY, or all if there is none.
func (i Images) Update(ctx context.Context, image *Image, fields ...string) (*Image, error) {
	return i.image(ctx, "Update", &imageMessage{image, mask(fields)})
}

// Delete deletes an image; with sync, what it alone has held is gone when Delete returns.
func (i Images) Delete(ctx context.Context, name string, sync bool) error {
	type request struct {
		Name string `pb:"1"`
		Sync bool   `pb:"2"`
	}
	return i.conn.call(ctx, "images.v1.Images/Delete", &request{name, sync}, &empty{})
}
