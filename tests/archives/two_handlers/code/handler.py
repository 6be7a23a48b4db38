from container.handler import Handler


class Base(Handler):
    pass


class First(Base):
    def predict(self, batch):
        return ["first"] * len(batch)


class Second(Base):
    def predict(self, batch):
        return ["second"] * len(batch)
