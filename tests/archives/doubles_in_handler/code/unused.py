from container.handler import Handler


class Unused(Handler):
    pass
