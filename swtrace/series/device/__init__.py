"""A series whose broadcasts and waits run on a device's streams, timed by the device's clock."""
